"""The HTML report of tagged files: one page that needs neither network nor server.

It gives to others: `report.report`. What people look at is in `report_page/`.

It counts nothing itself: the numbers are those of the other views, of a profile and of a
comparison. It must not know torch, transformers or Optimum.
"""
