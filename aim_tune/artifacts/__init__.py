"""Files that outlive a study: the configuration to keep, and a trained network in several forms."""
