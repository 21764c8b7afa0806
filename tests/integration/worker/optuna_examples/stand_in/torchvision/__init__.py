"""What pytorch_simple.py needs of torchvision: FashionMNIST from its files, as tensors."""
