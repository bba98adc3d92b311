"""The HTML report of tagged files: one page that needs neither network nor server.

It provides: `report.report`. The HTML, the style and the script of the page are in `report_page/`.

It counts nothing itself: the numbers come from the other views, from a profile and from a
comparison. It must not know torch, transformers or Optimum.
"""
