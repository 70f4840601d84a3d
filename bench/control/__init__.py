"""The control plane: codecs, compiled and interpreted."""
