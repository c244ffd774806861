"""What is not the method itself: baseline, ablation, speed, other scores, released models; see README.md."""
