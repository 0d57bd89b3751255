"""Dual-path RNN: masks from recurrent layers within and across chunks, on a learned filterbank."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from separate.models.filterbank import Decoder, Encoder, frame, overlap_add
from separate.models.layers import Recurrent, check_at_most, check_dropout, check_positive, make_activation
from separate.models.norms import CumulativeNorm, make_norm
from separate.shapes import Float


class DPRNN(nn.Module):
    """Luo, Chen & Yoshioka, 2020 ("Dual-path RNN: efficient long sequence modeling for time-domain ... separation").

    filters: of the encoder and decoder; kernel: their length in samples, with a hop of kernel / 2; chunk: frames of a
    chunk, with a hop of chunk / 2, best near sqrt(2 x frames of an excerpt) (the paper: 100 with kernel 16, 150 with 8,
    200 with 4, 250 with 2, its best); bottleneck: features between the blocks; blocks: their number, each with an
    intra- and an inter-chunk recurrent layer of `units` in each direction with linear layer, normalisation and residual
    connection;
    recurrent: lstm, gru or rnn; dropout: after each recurrent layer; activation: of the masks.

    The defaults are the paper's, with the kernel and chunk of its fastest network; experiment=dprnn_paper has those of
    its best network.

    The encoder's filters see all channels of a mixture, and the decoder returns the same number for each source.
    causal=True: the inter-chunk layers run forward only and all normalisation is cumulative.  The layers within a chunk
    remain bidirectional, so the output at a sample depends on up to (chunk - 1) kernel / 2 + kernel - 1 later samples,
    the algorithmic latency.
    """

    provides = ("waveforms",)
    faster_in_bfloat16 = True  # on a CPU that has it

    def __init__(
        self,
        sources: int,
        channels: int,
        filters: int = 64,
        kernel: int = 16,
        chunk: int = 100,
        bottleneck: int = 64,
        blocks: int = 6,
        recurrent: str = "lstm",
        units: int = 128,
        causal: bool = False,
        dropout: float = 0.0,
        activation: str = "sigmoid",
    ) -> None:
        super().__init__()
        check_positive(sources=sources, bottleneck=bottleneck, blocks=blocks)
        check_at_most(65_536, chunk=chunk)
        check_dropout(dropout)
        if chunk < 2 or chunk % 2:
            raise ValueError(
                f"chunk={chunk} frames must be even, because chunks overlap by half; use {max(chunk + 1, 2)}"
            )
        self.sources, self.chunk = sources, chunk
        self.encoder = Encoder(filters, channels, kernel)
        self.norm = make_norm("cumulative" if causal else "global", filters)
        self.bottleneck = nn.Linear(filters, bottleneck)
        self.blocks = nn.ModuleList(Block(bottleneck, recurrent, units, causal, dropout) for _ in range(blocks))
        self.prelu = nn.PReLU()
        self.masks = nn.Linear(bottleneck, sources * filters)
        self.activation = make_activation(activation)
        self.decoder = Decoder(filters, channels, kernel)

    def forward(self, mixture: Float[Tensor, "B C T"]) -> dict[str, Float[Tensor, "B S C T"]]:
        """The head `waveforms`."""
        features = self.encoder(mixture)  # (B, M, N)
        x = self.bottleneck(self.norm(features.transpose(1, 2)).transpose(1, 2))
        x = rearrange(frame(x.transpose(1, 2), self.chunk, self.chunk // 2), "b f j k -> b j k f")
        for block in self.blocks:
            x = block(x)
        x = overlap_add(rearrange(x, "b j k f -> b f j k"), self.chunk // 2, features.shape[1])  # (B, F, M)
        masks = rearrange(self.masks(self.prelu(x).transpose(1, 2)), "b m (s n) -> b s m n", s=self.sources)
        return {"waveforms": self.decoder(self.activation(masks) * features.unsqueeze(1), mixture.shape[-1])}

    def valid_length(self, length: int) -> int:
        """The smallest multiple of kernel / 2 samples >= length."""
        return self.encoder.valid_length(length)


class Block(nn.Module):
    """A dual-path block (Fig. 1B) for J chunks of K frames: a path along the frames, then one along the chunks."""

    def __init__(self, features: int, recurrent: str, units: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.intra = Path(features, recurrent, units, True, causal, dropout)
        self.inter = Path(features, recurrent, units, not causal, causal, dropout)

    def forward(self, x: Float[Tensor, "B J K F"]) -> Float[Tensor, "B J K F"]:
        x = x + self.intra(x)
        return x + self.inter(x.transpose(1, 2), across=True).transpose(1, 2)


class Path(nn.Module):
    """A recurrent layer along the steps of each group, a linear layer, and a norm over all dimensions but B."""

    def __init__(
        self, features: int, recurrent: str, units: int, bidirectional: bool, causal: bool, dropout: float
    ) -> None:
        super().__init__()
        self.recurrent = Recurrent(recurrent, features, 1, units, bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(self.recurrent.width, features)
        self.norm = CumulativeNorm(features) if causal else make_norm("global", features)

    def forward(self, x: Float[Tensor, "B groups steps F"], across: bool = False) -> Float[Tensor, "B groups steps F"]:
        """across: the steps are chunks; otherwise the groups are chunks.  A causal norm accumulates over chunks."""
        y = self.linear(self.dropout(self.recurrent(x.flatten(0, 1))))
        y = rearrange(y, "(b g) n f -> b f g n", b=len(x))
        if across:
            return rearrange(self.norm(y.transpose(2, 3)), "b f n g -> b g n f")
        return rearrange(self.norm(y), "b f g n -> b g n f")
