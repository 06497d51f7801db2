// The parts of Apache ECharts that a report uses. Made into echarts.min.js by (Node 20 or newer; the versions are the file's):
//   npm install --no-save --ignore-scripts echarts@6.1.0 esbuild@0.28.2
//   npx esbuild charts.entry.js --bundle --minify --format=iife --global-name=echarts --legal-comments=none --banner:js="$(cat charts.notice.txt)" --outfile=echarts.min.js
export { init, use } from "echarts/core";
import { use } from "echarts/core";
import { BarChart, HeatmapChart, LineChart, ScatterChart } from "echarts/charts";
import { AriaComponent, DataZoomInsideComponent, GridComponent, LegendComponent, MarkLineComponent, TooltipComponent, VisualMapComponent } from "echarts/components";
import { SVGRenderer } from "echarts/renderers";
use([BarChart, HeatmapChart, LineChart, ScatterChart, AriaComponent, DataZoomInsideComponent, GridComponent, LegendComponent, MarkLineComponent, TooltipComponent, VisualMapComponent, SVGRenderer]);
