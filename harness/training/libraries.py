"""What takes seconds to import before a run can begin, at once and in as little time as it takes."""

from harness.base.quick_imports import quick_imports, quiet_libraries


def import_libraries() -> None:
    """Import torch, transformers, bitsandbytes (cured, and silent about it) and PEFT, which imports it."""
    with quick_imports():
        quiet_libraries()

        import peft  # noqa: F401
        import transformers.models.auto.modeling_auto  # noqa: F401

        from harness.training import session  # noqa: F401
