"""Images and videos: from files to pixels, from pixels to codes and back.

One clip's walk: a source names it (`media`), its file is looked at (`inspection`) and judged (`filters`); later it is
decoded (`pixels`, `video`, `ahead`) and encoded to codes, which join the text in one stream.
Nothing here knows Ray: the stages call these functions from wherever they run.
"""
