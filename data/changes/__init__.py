"""Changes of test captions and images, with which `evaluation=robustness` asks what a model relies on."""
