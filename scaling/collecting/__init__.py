"""Making datasets: behaviour policies are trained or scripted, and what they do is recorded."""
