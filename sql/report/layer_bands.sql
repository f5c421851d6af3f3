-- grain: one row per band of layers of the run, the modules outside of layers last
select band, any_value(third) as third, any_value(first_layer) as first_layer, any_value(last_layer) as last_layer
from layer_bands(run := $run)
group by band
order by band < 0, band
