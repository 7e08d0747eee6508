module mqtt-integration/libs

go 1.26.0

require mqtt-integration/proto v0.0.0

replace mqtt-integration/proto => ../proto
