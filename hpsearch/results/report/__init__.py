"""The HTML report of a study: `page` puts it together from figures, tables and the map of the search.

The only part of hpsearch that draws.
"""
