"""The data sets of the recipes, made from their sources on the Hub or from files of the same schema."""

from rljob_trainer.data.recipes.catalog import RECIPES, Recipe
from rljob_trainer.data.recipes.prepare import Summary, prepare, prepare_data

__all__ = ["RECIPES", "Recipe", "Summary", "prepare", "prepare_data"]
