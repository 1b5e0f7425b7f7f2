"""The guest of the microVM engines: kernel, root file system and its first process. See docs/guest-image.md."""
