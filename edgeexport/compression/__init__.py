"""torch to torch: load checkpoints, distil, prune, retrain. The verbs live in the modules of this folder."""
