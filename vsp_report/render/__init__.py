"""Render: recordings in, a static site out. Neither torch nor a model is needed, or loaded.

    theme     the colours of pages and charts, in light and in dark
    findings  what a recording comes to: the verdict, the headline, checks, numbers in words
    prose     a case's story, from Markdown
    charts    parts of a recording -> alt.Chart
    overlays  image + patch weights -> image
    pages     recording -> the values of its page
    index_page index_charts    cards of all cases -> the values and charts of the page that lists them
    sketches  what each figure shows, and the way to a failure mode, drawn for who reads the first page
    labels    what an atlas calls the latents of a case, and how good each word is
    drawn     charts as files; what is drawn already is not drawn again
    share     the picture that goes with a link
    site      the only writer of HTML; knows what to rebuild
    export difference    a page as one file; two sites held against each other
    preview   the site on this machine's own address
"""
