"""Check the shapes and types in the signatures of `lit_offrl.nets` while its tests run."""

from jaxtyping import install_import_hook

with install_import_hook("lit_offrl.nets", "beartype.beartype"):
    import lit_offrl.nets  # noqa: F401
