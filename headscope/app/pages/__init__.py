"""The pages, one file each; each has a ``PAGE`` and is found by ``headscope.app.page``."""
