"""Export a trained classifier to ONNX, and check that it computes the same.

python recipes/export.py --model outputs/trec_weak --output outputs/trec_weak_onnx
"""

import argparse


def main(arguments: list[str] | None = None) -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="Folder of a saved model or of a checkpoint, or a Hub id")
    parser.add_argument("--output", required=True, help="Folder for model.onnx, the configuration and the processor")
    parser.add_argument("--revision", help="Branch, tag or commit of a model on the Hub")
    options = parser.parse_args(arguments)
    from hf_clidmu.exporting import export_onnx

    print(export_onnx(options.model, options.output, revision=options.revision))


if __name__ == "__main__":
    main()
