"""Render: recordings in, a static site out. Neither torch nor a model is needed, or loaded.

    theme     the colours of pages and charts, in light and in dark
    findings  what a recording comes to: the verdict, the headline, checks, numbers in words
    prose     a case's story, from Markdown
    charts    parts of a recording -> alt.Chart
    overlays  image + patch weights -> image
    pages     recording -> the values of its page
    site      the only writer of HTML; knows what to rebuild
    preview   the site on this machine's own address
"""
