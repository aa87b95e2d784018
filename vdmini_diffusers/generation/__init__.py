"""From a picture or a prompt to a clip in a file: what the command `vdmini generate` calls."""
