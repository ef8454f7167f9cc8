"""What a recipe's images stand for: embeddings in a store, places among tokens, small pictures."""

from dataclasses import dataclass

from gemma_train.data.document import Document, joined_texts
from gemma_train.data.images.decoding import decoded
from gemma_train.data.images.markup import Markup
from gemma_train.data.images.pictures import PICTURES, keep_picture
from gemma_train.data.images.store import EmbeddingStore
from gemma_train.data.images.views import View, views, worded
from gemma_train.data.recipe import ImageTextSource, RandomEncoder, Recipe
from gemma_train.errors import UserError, require
from gemma_train.tokenizer.tokenizer import Tokenizer


@dataclass(kw_only=True)
class RecipeImages:
    """What a recipe's images stand for: their embeddings, and their places among the tokens."""

    recipe: Recipe
    store: EmbeddingStore
    markup: Markup
    pictures: int = 0  # kept of them, for people to look at

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: Tokenizer) -> "RecipeImages | None":
        """None for a recipe of text alone.

        Raises `UserError` where nothing was embedded, or by another encoder, and where the
        tokenizer has no pieces for an image's ends.
        """
        if recipe.images is None:
            return None
        store = EmbeddingStore(recipe.image_folder)
        if isinstance(encoder := recipe.images.encoder, RandomEncoder):
            for name in ("side", "tokens", "width"):
                there, here = getattr(store.head, name), getattr(encoder.vision, name)
                require(
                    there == here,
                    f"image embeddings {store.folder!r} have {name} {there:,}, the recipe's "
                    f"images.encoder.vision.{name} is {here:,}: name another images.folder",
                )
        return cls(recipe=recipe, store=store, markup=Markup.of(tokenizer, store.head.tokens))

    def placed(self, document: Document, source: ImageTextSource) -> list[str | View]:
        """The document's parts, for each image what stands for it.

        Raises `BadImage`, and `UserError` for an image that was not embedded and could have been.
        """
        assert self.recipe.images is not None
        parts: list[str | View] = []
        for part in document.parts:
            if isinstance(part, str):
                parts.append(part)
                continue
            found = views(part, source.limits, self.recipe.images.pan_and_scan)
            if any(view.key not in self.store for view in found):
                decoded(part, source.limits)
                raise UserError(
                    f"{document.place}: an image has no embeddings in {self.store.folder!r}: run "
                    "gemma-train embed with this recipe, and then prepare"
                )
            parts += worded(found)
        return joined_texts(parts)

    def keep_pictures(self, document: Document, source: ImageTextSource, folder: str) -> None:
        """Keep how the images of a held-out document look, of the first ones."""
        assert self.recipe.images is not None
        for content in document.images:
            for key, box in views(content, source.limits, self.recipe.images.pan_and_scan):
                if self.pictures < PICTURES:
                    picture = decoded(content, source.limits)
                    keep_picture(folder, key, picture.crop(box) if box else picture)
                    self.pictures += 1
