'''What experiments share: options, data sets, classifiers, evidence, reports and figures.

An experiment is one file that reads from top to bottom: options, measurement, claims, figure.

    """Does a wider hidden layer lower the dev error?"""

    @dataclass(frozen=True)
    class Options(SeededOptions):
        """Options of the experiment."""

        width: int = option(32, "Units of the wide hidden layer.", minimum=2)
        output: Path = option(Path("results/width.png"), "Where to write the figure.")

        def check(self) -> None:
            if self.seeds > 100:
                raise ValueError(f"seeds must be at most 100, got {self.seeds}")

    def dev_errors(options, width):
        digits = load("digits")

        def one(seed):
            key_split, key_init, key_fit = jax.random.split(jax.random.key(seed), 3)
            train, dev = split(digits.x, digits.labels, (0.6, 0.4), key=key_split)
            layer = layers.mlp(width, 1, "relu", w_variance=2.0, out_features=10)
            params, _ = layer.draw(train.x.shape[1:], key=key_init, dtype=jnp.float32)
            optimizer = optax.adam(0.01)
            fit = classifier.train(
                layer, params, optimizer, train, key=key_fit, steps=300, batch_size=32
            )
            outputs = classifier.logits(layer, fit.params, fit.state, dev.x)
            return classifier.error_rate(outputs, dev.labels)

        return np.asarray(jax.jit(jax.vmap(one))(jnp.array(options.seed_values)))

    def run(options: Options) -> None:
        """Compare the dev errors of a narrow and a wide network."""
        narrow, wide = (dev_errors(options, width) for width in (1, options.width))
        rows = [(name, f"{Estimate.of(v):.1%}") for name, v in {"1": narrow, "more": wide}.items()]
        change = Estimate.paired(wide, narrow)
        claim = Claim("a wider layer lowers the dev error", change, "less", 0.0, form="+.1%")
        report = Report([table(("units", "dev error"), rows)], [claim], {"change": change})
        publish(report, options, figure(narrow, wide))

    if __name__ == "__main__":
        use_all_cores()
        command(Options, run)

The modules are `options` (fields with bounds, the command), `data` (data sets and splits),
`classifier` (training), `evidence` (estimates, claims, verdicts), `report` (tables, printing, the
file of results, progress bars) and `figures` (panels, error bars). A figure is a function of the
results that returns a matplotlib figure; it is in the same file, or in `figure.py` of a package
`experiments/<name>/` if the file would be longer than 250 lines.
'''

from experiments._kit import classifier, figures, typical
from experiments._kit.data import INPUT_HELP, DataSet, Examples, inputs, load, split, standardized
from experiments._kit.evidence import Claim, Estimate, Verdict, verdicts
from experiments._kit.options import (
    Options,
    SeededOptions,
    as_plain,
    check,
    check_writable,
    command,
    option,
    use_all_cores,
)
from experiments._kit.report import Progress, Report, paragraph, progress, publish, table

__all__ = [
    "INPUT_HELP",
    "Claim",
    "DataSet",
    "Estimate",
    "Examples",
    "Options",
    "Progress",
    "Report",
    "SeededOptions",
    "Verdict",
    "as_plain",
    "check",
    "check_writable",
    "classifier",
    "command",
    "figures",
    "inputs",
    "load",
    "option",
    "paragraph",
    "progress",
    "publish",
    "split",
    "standardized",
    "table",
    "typical",
    "use_all_cores",
    "verdicts",
]
