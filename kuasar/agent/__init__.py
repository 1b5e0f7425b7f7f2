"""What runs inside the sandbox: the parent of the containers. Imports ``kuasar.core`` and nothing else of the tree."""
