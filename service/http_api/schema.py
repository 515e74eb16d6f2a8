"""What every schema of the HTTP API is made from."""

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """A JSON object with exactly its fields; the docstring below a field is its description in /openapi.json."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
