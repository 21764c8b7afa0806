"""The script of train_pytorch.py, which reports to hpsearch, ends when it is pruned, and goes on after a kill.

It also runs by itself: python train_pytorch_reporting.py --lr 0.1 --hidden 64
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hpsearch.trial


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_data(batch_size):
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32)
    labels = torch.tensor(labels)
    # The split is the same for all seeds; 360 images are left for a test.
    rest, _ = train_test_split(range(len(labels)), test_size=360, random_state=0)
    train, validation = train_test_split(rest, test_size=360, random_state=0)
    train_set = TensorDataset(images[train], labels[train])
    validation_set = TensorDataset(images[validation], labels[validation])
    return DataLoader(train_set, batch_size, shuffle=True), DataLoader(validation_set, 360)


def main():
    args = parse_arguments()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_loader, validation_loader = load_data(args.batch_size)
    model = nn.Sequential(
        nn.Linear(64, args.hidden), nn.ReLU(), nn.Dropout(args.dropout), nn.Linear(args.hidden, 10)
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    loss_function = nn.CrossEntropyLoss()

    checkpoint = hpsearch.trial.folder() / "last.pt"
    first_epoch = 1
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        first_epoch = state["epoch"] + 1

    for epoch in range(first_epoch, args.epochs + 1):
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = loss_function(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()

        model.eval()
        wrong = 0
        with torch.no_grad():
            for images, labels in validation_loader:
                wrong += (model(images.to(device)).argmax(1).cpu() != labels).sum().item()
        error = wrong / len(validation_loader.dataset)
        print(f"epoch {epoch}: train_loss={loss.item():.4f} val_err={error:.4f}")
        state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state["random"] = torch.get_rng_state()  # of the order of the images, so that the run is the same after a kill
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)  # a kill leaves the old file or the new one
        hpsearch.trial.report(epoch, error, train_loss=loss.item())
        if hpsearch.trial.should_stop():
            break


if __name__ == "__main__":
    main()
