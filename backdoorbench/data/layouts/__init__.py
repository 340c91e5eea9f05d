"""Images as people have them, a file a layout: `SAYS` what lies there, `fits(root)`, and `read(dataset, root, order) -> Raw`."""
