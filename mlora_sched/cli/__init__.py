"""The command line: `remote` verbs speak to a daemon, `local` verbs need none. Importing it loads nothing heavy."""
