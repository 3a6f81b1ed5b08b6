'''What experiments share: options, data sets, classifiers, evidence, reports and figures.

An experiment is one file that reads from top to bottom: options, measurement, claims, figure.

    """Does a wider hidden layer lower the dev error?"""

    @dataclass(frozen=True)
    class Options(kit.SeededOptions):
        """Options of the experiment."""

        width: int = kit.option(32, "Units of the wide hidden layer.", minimum=2)
        output: Path = kit.option(Path("results/width.png"), "Where to write the figure.")

    def dev_errors(options, width):
        digits, layer = kit.load("digits"), layers.mlp(width, 1, "relu", out_features=10)

        def one(seed):
            key_split, key_init, key_fit = jax.random.split(jax.random.key(seed), 3)
            train, dev = kit.split(digits.x, digits.labels, (0.6, 0.4), key=key_split)
            params, _ = layer.draw(train.x.shape[1:], key=key_init, dtype=jnp.float32)
            how = {"key": key_fit, "steps": 300, "batch_size": 32}
            fit = classifier.train(layer, params, optax.adam(0.01), train, **how)
            outputs = classifier.logits(layer, fit.params, fit.state, dev.x)
            return classifier.error_rate(outputs, dev.labels)

        return kit.mapped(one, jnp.array(options.seed_values))

    def run(options: Options) -> None:
        """Compare the dev errors of a narrow and a wide network."""
        errors = {width: dev_errors(options, width) for width in (1, options.width)}
        rows = [(f"{width} units", Estimate.of(values)) for width, values in errors.items()]
        change = Estimate.paired(errors[options.width], errors[1])
        claim = kit.Claim("a wider layer lowers the dev error", change, "less", form="+.1%")
        table = kit.table({"hidden layer": "", "dev error": ".1%"}, rows)

        def draw():
            figure, ((ax,),) = figures.panels("Wider layers err less on the dev set", height=3)
            figures.dots(ax, {name: {"dev error": error} for name, error in rows})
            ax.set_xlabel("dev error")
            return figure

        kit.publish(kit.Report([table], [claim], {"change": change}), options, draw)

    if __name__ == "__main__":
        kit.use_all_cores()
        kit.command(Options, run)

The modules are `options` (fields with bounds, the command), `data` (data sets and splits),
`classifier` (training), `grid` (all combinations of values in one program, programs in threads),
`cluster` (several processes), `interruption` (Ctrl-C), `evidence` (estimates, claims, verdicts),
`report` (tables, printing, the file of results, progress bars) and `figures` (panels, curves, dots
with error bars). An experiment that would be much longer than 300 lines is a package
`experiments/<name>/` whose `__main__.py` has the claims and the command.
'''

# ruff: noqa: F401
from experiments._kit import classifier, figures
from experiments._kit.cluster import CLUSTER_FIELDS, ClusterOptions, cluster
from experiments._kit.data import INPUT_HELP, DataSet, Examples, inputs, load, split, standardized
from experiments._kit.evidence import Claim, Estimate, Verdict, verdicts
from experiments._kit.grid import in_threads, mapped
from experiments._kit.options import (
    APPEARANCE,
    FigureOptions,
    Options,
    SeededOptions,
    as_plain,
    check,
    check_range,
    check_writable,
    command,
    option,
    use_all_cores,
)
from experiments._kit.report import (
    Progress,
    Report,
    paragraph,
    progress,
    publish,
    sweep_progress,
    table,
)
