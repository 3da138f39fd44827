"""The command line: ``diptych VERB ...``, one file a verb."""
