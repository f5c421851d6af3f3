-- grain: one row: words of all readable shards, repeated ones repeatedly
select coalesce(sum(n_words), 0)::bigint as n_words
from shard_lengths
