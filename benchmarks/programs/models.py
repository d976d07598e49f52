"""The models and their data. models.hpp holds the same ones: equal parameters and batches, bit for bit."""
import itertools
import math

import torch
from torch import nn
from torch.nn import functional


class Mlp(nn.Module):
    def __init__(self, case):
        super().__init__()
        self.batch, self.width = case["batch"], case["width"]
        layers = [(nn.Linear(self.width, self.width), nn.ReLU()) for _ in range(case["layers"])]
        self.body = nn.Sequential(*itertools.chain(*layers))

    def forward(self, data):
        return self.body(data)

    loss = staticmethod(functional.mse_loss)

    def random_batch(self):
        data = torch.randn(self.batch, self.width)
        return data, torch.rand(self.batch, self.width)


class Residual(nn.Module):
    def __init__(self, case):
        super().__init__()
        self.batch, self.width = case["batch"], case["width"]
        for i in range(case["layers"]):
            self.add_module(f"layer{i}", nn.Linear(self.width, self.width))

    def forward(self, x):
        layers = list(self.children())
        for layer in layers:
            x = x + torch.relu(layer(x)) / len(layers)
        return x

    loss = staticmethod(functional.mse_loss)
    random_batch = Mlp.random_batch


class TransformerBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    width, heads, length, tokens = 64, 4, 32, 128

    def __init__(self, case):
        super().__init__()
        self.batch = case["batch"]
        self.token = nn.Embedding(self.tokens, self.width)
        self.position = nn.Embedding(self.length, self.width)
        self.block0 = TransformerBlock(self.width, self.heads)
        self.block1 = TransformerBlock(self.width, self.heads)
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, self.tokens)

    def forward(self, data):
        x = self.token(data) + self.position.weight
        return self.head(self.norm(self.block1(self.block0(x)))).view(-1, self.tokens)

    loss = staticmethod(functional.cross_entropy)

    def random_batch(self):
        data = torch.randint(self.tokens, (self.batch, self.length))
        return data, torch.randint(self.tokens, (self.batch * self.length,))


class ResNetBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    def __init__(self, case):
        super().__init__()
        self.batch = case["batch"]
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block0 = ResNetBlock(16, 16, 1)
        self.block1 = ResNetBlock(16, 32, 2)
        self.block2 = ResNetBlock(32, 64, 2)
        self.head = nn.Linear(64, 10)

    def forward(self, data):
        x = torch.relu(self.norm(self.stem(data)))
        return self.head(self.block2(self.block1(self.block0(x))).mean((2, 3)))

    loss = staticmethod(functional.cross_entropy)

    def random_batch(self):
        data = torch.randn(self.batch, 3, 16, 16)
        return data, torch.randint(10, (self.batch,))


def make_net(case, device):
    net = {"mlp": Mlp, "residual": Residual, "transformer": Transformer, "resnet": ResNet}[case["model"]](case)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if value.dim() > 1:
                bound = math.sqrt(6 / (value.numel() / value.shape[0]))
                value.uniform_(-bound, bound)
            else:
                value.fill_(1 if name.endswith("weight") else 0)
    return net.to(device)


def batches(net, rank, device):
    """Four batches of this rank's own, in turns, for ever."""
    torch.manual_seed(1000 + rank)
    drawn = [net.random_batch() for _ in range(4)]
    return itertools.cycle([(data.to(device), target.to(device)) for data, target in drawn])
