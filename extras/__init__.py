"""What is not the method itself: baselines, ablation, speed, scores, released models: README.md."""
