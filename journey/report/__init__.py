"""A page, a picture, an animation and a table of what was found.

In reading order: ``page`` (one HTML file that opens offline: ``page.html``, ``page.css``, ``page.js``,
``page.charts.js``), ``payload`` (what the page holds), ``sheets`` (its pictures), ``group_bars`` (its groups),
``story`` (what it says in words), ``view`` (what every form shows), ``media`` (videos and sounds as pictures), ``draw``
(how), ``png``, ``gif``, ``csv``, ``groups`` (a picture of groups), ``run`` (a folder that keeps all of it), ``shown``
(its training images).
"""
