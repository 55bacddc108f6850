r"""Zero-shot CLIP on the emoji of other vendors: four sentences, and their average.

    vlp train vlp_deploy/embedded/emoji/split_zhou_styles.json --method zeroshot \
        --template 'a photo of a {}.' --template 'a drawing of a {}.' \
        --template 'an icon of a {}.' --template 'art of the {}.' --output runs/zeroshot

9 s on two CPU cores: 23.4 % of 697 images right with the average of the four sentences, 23.7 %
with the best of them alone.
"""

from vlp_train.recipes import Recipe

RECIPE = Recipe(
    method="zeroshot",
    options=(
        *("--template", "a photo of a {}."),
        *("--template", "a drawing of a {}."),
        *("--template", "an icon of a {}."),
        *("--template", "art of the {}."),
    ),
    smoke={},
)

if __name__ == "__main__":
    RECIPE.main()
