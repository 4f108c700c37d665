"""The versions of hawse and of the specification."""

VERSION = "0.1.0"
#: The newest version of the OCI runtime specification whose fields hawse supports.
SPEC_VERSION = "1.2.0"
