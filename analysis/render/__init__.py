"""One table in four languages, each with everything escaped that its readers would act upon."""

from analysis.render.csv import csv
from analysis.render.html import html
from analysis.render.latex import latex, latex_document
from analysis.render.markdown import markdown

__all__ = ["csv", "html", "latex", "latex_document", "markdown"]
