"""The specialists. Importing this package registers the experts in its files by name (`registry.build_expert`)."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
