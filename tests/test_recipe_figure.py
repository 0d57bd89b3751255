"""The recipe for a figure: a generator whose figures are in TensorBoard."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_a_figure_of_ones_own_is_in_tensorboard_beside_ours(recipe):
    mine = recipe("separate/evaluation/README.md", "Add a figure")
    code, _, err = mine.run(0, "logger.tensorboard=true")
    assert code == 0, err
    events = EventAccumulator(str(mine.folder / "runs" / "mine" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"example_0", "example_1", "waveforms_0", "waveforms_1"} <= set(tags["images"])
    assert "example_1/voice" in tags["audio"]


def test_a_figure_that_does_not_exist_is_refused(recipe):
    mine = recipe("separate/evaluation/README.md", "Add a figure")
    own = "logger.figures=[mypackage.figures.waveform]"
    code, _, err = mine.run(0, own, "logger.tensorboard=true")
    assert code == 2
    assert "mypackage.figures has no waveform; did you mean waveforms?" in err
