r"""VPT-deep on four styles of emoji, measured on the styles of other vendors.

    vlp train vlp_deploy/embedded/emoji/split_zhou_styles.json --method vpt --shots 4 \
        --seed 1 --epochs 5 --template 'an icon of a {}.' --output runs/vpt

53 s on one CPU core: 10.0 % of 697 images right (seed 1); zero-shot: 8.6 %.
"""

from vlp_train.recipes import Recipe

RECIPE = Recipe(
    method="vpt",
    options=(
        *("--shots", "4", "--seed", "1", "--epochs", "5"),
        *("--template", "an icon of a {}."),
    ),
    smoke={"--shots": "1", "--epochs": "1"},
)

if __name__ == "__main__":
    RECIPE.main()
