"""Roll-outs of policies, their scores, and the record that goes with a score."""
