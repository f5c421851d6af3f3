-- grain: one row per pair of the sequences asked for that is nearly the same: a link to an earlier one of its like
-- not every such pair: as many as connect all that are alike, so that a text which stands there 500 times has 499
-- MinHash in one permutation (Li, Owen and Zhang 2012, arXiv 1208.1259): 128 slots in 32 bands propose pairs, Jaccard decides
with asked as (
    select unnest($sequences::bigint[]) as sequence_id
),
runs as (
    -- The hashed runs of five tokens; of a shorter sequence the whole.
    select
        s.sequence_id,
        case
            when s.n_tokens < 5 then [hash(s.token_ids)]
            else list_transform(
                list_zip(
                    s.token_ids, s.token_ids[2:], s.token_ids[3:], s.token_ids[4:], s.token_ids[5:], true
                ),
                lambda five: hash(five)
            )
        end as hashes
    from sequences s
    join asked a on a.sequence_id = s.sequence_id
),
pieces as (
    select sequence_id, unnest(hashes) as hash
    from runs
),
sketches as (
    select sequence_id, hash % 128 as slot, min(hash) as least
    from pieces
    group by sequence_id, slot
),
buckets as (
    select sequence_id, slot // 4 as bucket, list(least order by slot) as leasts
    from sketches
    group by sequence_id, bucket
),
proposed as (
    select distinct first_value(sequence_id) over same as earlier, sequence_id as later
    from buckets
    window same as (partition by bucket, leasts order by sequence_id)
),
measured as (
    select
        p.earlier,
        p.later,
        len(list_intersect(a.hashes, b.hashes)) as n_shared,
        len(list_distinct(a.hashes)) + len(list_distinct(b.hashes)) as n_both
    from proposed p
    join runs a on a.sequence_id = p.earlier
    join runs b on b.sequence_id = p.later
    where p.earlier < p.later
)
select earlier, later
from measured
where n_shared >= $jaccard * (n_both - n_shared)
order by earlier, later
