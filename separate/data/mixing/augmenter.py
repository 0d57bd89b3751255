"""All augmentations of a training in order: the built-in ones and those of `augment.extra`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from separate.config import AugmentConfig, CacheConfig
from separate.data.example import Example
from separate.data.mixing.augmentation import AudioFormat, Augmentation, Change
from separate.data.mixing.channels import ChannelMatrix, Dropout, Gain, Loudness, Pan, Polarity, Swap
from separate.data.mixing.equaliser import Equaliser
from separate.data.mixing.noise import Noise
from separate.data.mixing.reverb import Reverb
from separate.data.mixing.stretch import Stretch
from separate.data.storage.headers import audio_pieces
from separate.data.storage.reading import Reader
from separate.errors import UsageError
from separate.files import cache_folder
from separate.instantiate import build
from separate.validation import validate

BUILT_IN: tuple[type[Augmentation], ...] = (Stretch, Equaliser, Reverb, ChannelMatrix, Noise)


class Augmenter:
    """Draw the changes of each example.

    All built-in augmentations draw from one generator, even if they are off; each of `augment.extra` has its own
    generator, seeded by its name.  So adding an augmentation does not change the random numbers of the others.

    reader: reads noise, by default from the files.  trust: see `build`, for `augment.extra`.
    UsageError for wrong options, DataError for unreadable files of noise or impulse responses.
    """

    def __init__(
        self,
        options: AugmentConfig,
        audio: AudioFormat,
        cache: CacheConfig | None = None,
        reader: Reader | None = None,
        trust: Sequence[str] | None = None,
    ) -> None:
        validate(AugmentConfig, vars(options), "augment.")
        self.options = options
        self._extra = _build_extra(options, audio, trust)
        if cache is not None and cache.kind == "spectrogram":
            self._refuse_spectrograms()
        headers = cache_folder(cache.folder if cache else None) / "headers"
        reader = reader or Reader(audio.sample_rate, audio.channels)
        rooms = audio_pieces(options.reverb, "augment.reverb", headers)
        self.stretch = Stretch(options.speed, options.tempo, options.pitch, audio.frames)
        self.noise = Noise(
            audio_pieces(options.noise, "augment.noise", headers),
            options.noise_probability,
            options.noise_snr,
            audio,
            reader,
        )
        equaliser = Equaliser(options.equaliser)
        reverb = Reverb(rooms, options.reverb_probability, options.reverb_seconds, options.reverb_reference, audio)
        channels = ChannelMatrix(
            audio.channels,
            [
                Gain(options.gain),
                Loudness(options.loudness),
                Polarity(options.polarity),
                Swap(options.swap, audio.channels),
                Pan(options.pan, audio.channels),
                Dropout(options.dropout),
            ],
        )
        # Do not change these orders: a resumed run must draw and round as before.
        self._draw_order = (channels, self.stretch, self.noise, equaliser, reverb)
        self._apply_order = (self.stretch, equaliser, reverb, channels, *self._extra.values(), self.noise)

    @property
    def active(self) -> bool:
        return self.options != AugmentConfig(shift=self.options.shift)

    def draw(self, rng: np.random.Generator, example: Example) -> list[Change]:
        """The changes of an example, in the order in which they are applied."""
        drawn = {id(one): one.draw(rng, example) for one in self._draw_order}
        for name, one in self._extra.items():
            drawn[id(one)] = one.draw(_own_generator(rng, name), example)
        return [Change(type(one), found) for one in self._apply_order if (found := drawn[id(one)]) is not None]

    def _refuse_spectrograms(self) -> None:
        asked = [key for one in BUILT_IN if not one.on_spectrograms for key in one.keys if getattr(self.options, key)]
        asked += [f"extra.{name}" for name, one in self._extra.items() if not one.on_spectrograms]
        if asked:
            raise UsageError(
                f"augment.{asked[0]} changes samples, and cache=spectrogram gives spectrograms; use cache=audio, or "
                f"leave {' and '.join(f'augment.{key}' for key in asked)} out"
            )


def _build_extra(options: AugmentConfig, audio: AudioFormat, trust: Sequence[str] | None) -> dict[str, Augmentation]:
    """The user's own augmentations by name."""
    extra = {}
    for name, spec in options.extra.items():
        spec = spec if isinstance(spec, Mapping) else {"_target_": spec}
        made = build(spec, f"augment.extra.{name}", trust, **vars(audio))
        if not isinstance(made, Augmentation):
            raise UsageError(
                f"augment.extra.{name}._target_={spec['_target_']} is not an augmentation; name a subclass of "
                f"{Augmentation.__module__}.Augmentation"
            )
        extra[name] = made
    return extra


def _own_generator(rng: np.random.Generator, name: str) -> np.random.Generator:
    """A generator that depends on the seed of `rng` and on `name`, but not on the state of `rng`."""
    seed = rng.bit_generator.seed_seq
    assert isinstance(seed, np.random.SeedSequence)
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(zlib.crc32(name.encode()),)))
