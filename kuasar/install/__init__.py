"""Puts kuasar onto a node and takes it away again: files, links, services, and the node's labels in Kubernetes."""
