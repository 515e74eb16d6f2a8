"""Which addresses may be connected to, and the HTTP transport that connects to no others."""
