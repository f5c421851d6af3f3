-- grain: one row per layer that a run attributes: its third of the network's depth, and the band that pages show it in
-- a band is one layer, or, past 16 attributed layers, one of 12 of like width; other modules are layer −1 and in no third
create or replace macro layer_bands(run := 'latest') as table
with chosen as (
    select run_id
    from runs
    where run = 'latest' or run_id = run
    order by finished_at desc, run_id
    limit 1
),
attributed as (
    select distinct l.layer
    from layer_influences l
    join chosen c on c.run_id = l.run_id
),
deepest as (
    select 1 + greatest(
        coalesce((select max(m.layer) from modules m join chosen c on c.run_id = m.run_id), 0),
        coalesce((select max(layer) from attributed), 0)
    ) as n_layers
),
placed as (
    -- A layer stands where its middle is: of 4 layers 1 is in the lower third, 2 in the middle, 1 in the upper.
    select
        a.layer,
        (2 * a.layer + 1) / (2.0 * d.n_layers) as depth,
        count(*) filter (where a.layer >= 0) over () > 16 as wide
    from attributed a
    cross join deepest d
),
banded as (
    select
        layer,
        case
            when layer < 0 then -1
            when wide then floor(12 * depth)::integer
            else layer
        end as band,
        case when layer >= 0 then list_extract(['lower', 'middle', 'upper'], floor(3 * depth)::integer + 1) end as third
    from placed
)
select
    layer,
    band,
    third,
    min(layer) over (partition by band) as first_layer,
    max(layer) over (partition by band) as last_layer
from banded
order by layer
