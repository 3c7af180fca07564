"""One self-contained page of a comparison."""


def page(found, changes) -> str:
    raise NotImplementedError
