-- grain: one row per file of `asked` with a key that no file of `held` has
select distinct a.file
from asked a
anti join held h on h.key = a.key
order by a.file
