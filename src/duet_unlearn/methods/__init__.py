"""Every method is one frozen dataclass that owns its life (``base.Method``); ``config.recipe`` lists them."""
