"""The command line: options in, one call into the API, results on stdout, everything else on stderr."""
