"""What the documentation site is built from: the pages of ``docs``, and pages made of the code itself.

``python -m handbook FOLDER`` writes them, ``make docs`` builds the site. Only that needs a generator.
"""
